"""Settings: from flags, from `[tool.gradcheck]`, and from mappings."""
