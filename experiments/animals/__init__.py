"""From image tags to masks on photographs of animals, beside points and full supervision."""
