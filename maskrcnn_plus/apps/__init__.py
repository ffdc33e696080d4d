"""Whole jobs, as the command lines run them; nothing else imports them."""
