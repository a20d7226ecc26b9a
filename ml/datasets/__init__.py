"""Read, group and pool labeled data sets."""
