"""Faults in the lab: workers that are killed in each kind of job, a data set whose deletion is
requested while it is evaluated, damaged files, simultaneous promotions, a shadow that fails, a
curve of a million points. Each must end as intended, and scans that arrive meanwhile must get their
verdicts.
"""
