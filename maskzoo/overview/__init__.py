"""One look at images as a run would see them, before it begins: `maskzoo data`."""
