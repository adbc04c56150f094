"""Stock of sales: a Redis gate decides who gets a unit, SQL remembers it and has the last word."""
