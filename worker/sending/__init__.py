"""What leaves the system: notifications to people and programs, results to archives."""
