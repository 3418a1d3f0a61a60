"""What is swapped: the plan, how targets are chosen, and what they become."""
