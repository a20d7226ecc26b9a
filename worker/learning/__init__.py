"""The jobs of whoever trains: data sets, training runs, evaluations, comparisons, experiments."""
