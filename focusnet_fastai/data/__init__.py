"Data sets and loaders."
