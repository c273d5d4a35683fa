"Experiments: recipes, resumable runs, the paper's tables."
