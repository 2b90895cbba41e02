"""Model files from what people have (`modelfleet import`), and what they need to leave (`modelfleet export`)."""
