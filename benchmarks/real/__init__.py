"""Guided enlargements on real networks and labels drawn by hand: training, scores, rivals, and the rows they give."""
