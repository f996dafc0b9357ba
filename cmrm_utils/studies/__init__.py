"""What each notebook asks: its list of trials, and its tables."""
