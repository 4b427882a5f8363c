"""No Train No Gain (https://github.com/JeanKaddour/NoTrainNoGain), a descendant of Cramming's first encoder.

Its ``RMSNorm`` divides by the L2 norm, not by the root mean square: ``unitnorm`` here.
"""

from collections.abc import Mapping
from typing import Any

from cramming.architectures.references.cramming import NORMS, REQUIRED, scriptable_plan
from cramming.architectures.references.plan import Plan, check_values, family


@family("ntng")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``ScriptableMaskedLM`` with either attention."""
    check_values("ntng", config.get("arch", config), REQUIRED)
    return scriptable_plan(config, head, {**NORMS, "RMSNorm": "unitnorm"}, skipped_transform="linear")
