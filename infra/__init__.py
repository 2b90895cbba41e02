"""The Pulumi program: reads model files and a stack file, makes one plan, renders it."""
