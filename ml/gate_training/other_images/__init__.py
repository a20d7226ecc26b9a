"""Images that are not head CT, for training the check."""
