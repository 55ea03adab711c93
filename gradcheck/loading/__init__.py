"""From what the user names to a Workload: finding the model, data, loss and optimizer, inferring or inventing the rest."""
