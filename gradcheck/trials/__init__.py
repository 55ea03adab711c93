"""The trial: remedies against each other, and against no remedy, in paired training."""
