"""The tour: figures of the lecture's claims, a module for each section. `zoo tour SECTION` draws one."""
