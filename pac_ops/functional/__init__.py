"""The operators as functions, with their argument checks and defaults.

All of them raise TypeError where an argument is of the wrong type and ValueError where it has the wrong shape or
value, in one line that names the argument, what it must be and what it was.
"""
