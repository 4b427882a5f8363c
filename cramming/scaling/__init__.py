"""What training on several devices would take, from what one device takes: formulae, and a command that prints them."""
