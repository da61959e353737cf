"""Reports made of records: the page of figures and tables, and the tables of the READMEs."""
