"""What the commands share: tables and plots, numbers over seeds, shares of a split, and what errors mean."""
