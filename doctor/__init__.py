"""What keeps a stack from serving: readers look at every layer, rules say the first cause and the way out.

    subject = open_subject(root, "prod")
    looked = look(readers_of(subject), seconds=8)
    causes = diagnose(default_rules(), looked.evidence, subject)

`readers/` has one file a layer; none raises. `rules/` is data, and `diagnose` is pure.
"""
