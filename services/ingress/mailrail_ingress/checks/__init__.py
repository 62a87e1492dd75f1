"""What is asked about a message before it is taken."""
