"""No Train No Gain (https://github.com/JeanKaddour/NoTrainNoGain), a descendant of Cramming's first encoder.

Its ``RMSNorm`` divides by the L2 norm, not by the root mean square: ``unitnorm`` here.
"""

from collections.abc import Collection, Mapping
from typing import Any

from cramming.architectures.references.cramming import FIRST, NORMS, REQUIRED, is_scriptable, scriptable_plan
from cramming.architectures.references.plan import Plan, check_values, detector, entry_or, family


@family("ntng")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``ScriptableMaskedLM`` with either attention."""
    check_values("ntng", config.get("arch", config), REQUIRED)
    return scriptable_plan(config, head, {**NORMS, "RMSNorm": "unitnorm"}, skipped_transform="linear")


@detector("ntng")
def is_ntng(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is of the first encoder's descent and its config has no option that only Cramming's have."""
    arch = config.get("arch", config)
    first = FIRST in (entry_or(arch, "architectures", ()) or ())
    return is_scriptable(names) and first and "objective_layout" not in arch
