"""Detection configs: one delta file an experiment, each defines `recipe`, a `DetRecipe` (common/recipe.py)."""
