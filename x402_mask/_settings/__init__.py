"""The owner's words to Python values: files, variables, keywords."""
