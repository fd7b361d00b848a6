"""Who somebody is: the visitor's cookie, admins and their sign-in."""
