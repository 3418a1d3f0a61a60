"""What is swapped and guided: the plan."""
