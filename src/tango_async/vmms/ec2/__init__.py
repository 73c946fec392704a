"""ec2SSH: jobs on instances of Amazon EC2, or of a cloud with its API."""
