"""Pictures that are not head CTs, which the check learns from."""
