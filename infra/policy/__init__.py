"""What a stack on AWS must never be: a Pulumi policy pack, and its rules as pure functions."""
