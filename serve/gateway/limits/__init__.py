"""Who may ask for what, and how much: keys, origins, quotas, budgets."""
