"""What is done to one record before it becomes an example."""
