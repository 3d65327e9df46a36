"""What the report and the card of a backbone say in the place of accuracies: features lost, neighbours, uses."""
