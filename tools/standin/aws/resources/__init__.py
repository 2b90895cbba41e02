"""One module per service. A module offers `RESOURCES` and `INVOKES`, tuples of definitions; it is found by being here."""
