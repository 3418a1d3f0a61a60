"""What a release needs beside the packages: checks of the distributions, and pictures and pages of the docs."""
