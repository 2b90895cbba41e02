"""One module per service: it offers `RESOURCES` and `INVOKES`, tuples of definitions, and is found by being here."""
