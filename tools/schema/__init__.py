"""Makes the checked-in data files of `serving/config/data` and the JSON Schemas, from the installed packages."""
