"""The paper's experiment: every architecture, plain and restructured, under both protocols."""
