"""The reading half: all input and output before `plan()`."""
