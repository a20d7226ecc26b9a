"""Accounts: signing up, logging in, passwords, second factors, API tokens and notifications."""
