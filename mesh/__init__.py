"""What every service of the mesh shares and none owns. Imports no service and no stubs of one."""
