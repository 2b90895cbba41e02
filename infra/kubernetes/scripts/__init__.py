"""Small programs that pods run beside Ray, mounted from a ConfigMap: standard library and the image's packages only."""
