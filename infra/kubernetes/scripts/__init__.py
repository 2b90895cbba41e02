"""Small programs that pods run next to Ray, mounted from a ConfigMap; they need only the image's packages."""
