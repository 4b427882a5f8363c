"""What downstream tasks are measured by, over scikit-learn and scipy, and nothing from the network.

The definitions are functions of arrays (``single``, ``grouped``, ``answers``, ``entities``): a worker scores with them
at once. ``modules`` offers the same as ``evaluate.Metric`` classes for everyone else; importing that package takes
seconds. All results are fractions; correlations lie between -1 and 1 and are None where they are undefined.
"""
