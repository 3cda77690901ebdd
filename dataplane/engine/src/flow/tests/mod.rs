//! The table with a virtual clock: sequential behaviour here, the rest in modules of their own.

mod table;
