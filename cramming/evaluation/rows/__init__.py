"""Where rows of downstream tasks come from: official folders, the hub, files of one's own."""
