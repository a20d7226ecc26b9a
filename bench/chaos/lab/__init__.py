"""Faults in the lab: processes that are killed in each kind of job and before its commit, a data
set whose deletion is requested while it is evaluated, damaged files, simultaneous promotions,
shadows that fail or kill, a curve of a million points. Each must end as intended, and scans that
arrive meanwhile must get their verdicts.
"""
