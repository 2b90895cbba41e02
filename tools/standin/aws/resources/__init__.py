"""One module per service; each offers `RESOURCES` and `INVOKES`, tuples of definitions. New modules are found here."""
