"""What does swapping buy? Experiments with a plain control, each a config in and a result out."""
